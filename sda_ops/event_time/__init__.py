"""Event time: watermarks in the stream, sources that promise them, and windows that close by them.

- ``watermark``: the control item, and how a fan-in combines those of its inputs
- ``promises``: what a source may promise, and when. Pure
- ``source``: the wrapper that makes a watermarked source of any source
- ``metrics``: marks, lags and windows as metrics
- ``segmentation``: how the items of a key are cut into windows. Pure
- ``changes``: what windows report. Pure
- ``windows``: windows over event time, with an active and a retained tier. Pure
"""
