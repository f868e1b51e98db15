"""The simulator: the very same EngineCore in virtual time, over an executor that asks a profile."""
