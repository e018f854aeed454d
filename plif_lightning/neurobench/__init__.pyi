from .adapter import NeuroBenchNetwork as NeuroBenchNetwork
