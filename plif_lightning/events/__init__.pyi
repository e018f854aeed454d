from .integration import frames_of as frames_of
from .integration import integrate as integrate
from .readers import read_any as read_any
from .readers import sensor_of as sensor_of
from .recording import Recording as Recording
from .recording import RecordingError as RecordingError
from .recording import Sensor as Sensor
