"""The five seams, simulated: virtual time, a network and a disk that fail by seed."""
