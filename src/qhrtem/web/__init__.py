"""The live page of a run: what its journal and its stored states say, sent to browsers as it grows.

It reads the run folder and nothing else. The one thing it can do to a run is to ask it to stop, as `kill`
would. starlette and uvicorn (`pip install 'qhrtem[web]'`) are imported when a page is served, not before.
"""
