"""The page: a picture or a clip dropped into a browser on this machine."""
