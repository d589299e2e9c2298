import logging

# Before its import, which logs that it looks for fonts; later it warns of one without bold type.
logging.getLogger("matplotlib.font_manager").setLevel("ERROR")
