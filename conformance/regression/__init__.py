"""Two runs compared: is this one as good as the last, and is it the port or the machine?"""
