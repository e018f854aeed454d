from .tensors import frames as frames
from .tensors import maps as maps
from .tensors import membrane as membrane
from .tensors import picture as picture
from .tensors import raster as raster
from .tensors import response as response
