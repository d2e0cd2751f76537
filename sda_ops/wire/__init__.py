"""Wire formats, one module for each: ``radar``, ``optical``, ``isl``, ``tdm``, ``iod``, ``cdm``. `MalformedFrame` is common to all.

A decoder checks only the *structure*: sizes, keys, types. `sda_ops.validate` checks the numbers, so that a NaN or a target
inside the Earth is rejected there, with a reason. Decoders are pure: the time of arrival is an argument, and sockets
belong to the sources. The live formats have an encoder beside the decoder, for the simulator and the tests.
"""
