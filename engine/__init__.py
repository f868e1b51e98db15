"""The engine: a pure scheduling core, the model that computes, and the process that serves both."""
