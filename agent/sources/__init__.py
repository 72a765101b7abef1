"""Inputs that need no request: files of a folder, messages of a topic, frames of a camera, the script's own loop.

A worker opens no connection and reads nothing but its slot, so two processes share the work. The agent's parent allows
(`allowed`), remembers which files are done (`memory`) and holds the door (`door`): connections, results and the turn of
one worker at a time come through it. The worker asks (`asking`), takes items (`directory`, `mqtt`, `video`, `script`)
and feeds them to the predictor in threads (`feed`), made by its session (`opened`).

The parent imports `allowed`, `door`, `memory` and `talk` only: no NumPy there.
"""
