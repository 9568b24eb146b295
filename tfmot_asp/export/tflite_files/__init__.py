"""Reading and checking TFLite files."""
