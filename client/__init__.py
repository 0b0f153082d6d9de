"""The SDK: producers, consumers, admin. Runs on anyio, so under trio and under asyncio."""
