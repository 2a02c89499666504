"""`diffseg serve`: the method over HTTP, and a page to try it on. Start reading at `app.py`."""
