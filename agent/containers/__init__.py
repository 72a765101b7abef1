"""Modules in containers: a child process that talks to the engine, the same worker inside, and the talk with both."""
