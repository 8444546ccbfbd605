"""Simulated mice on disk, in the formats of real ones: for trying things out, for tests and for measuring.

`tree.simulate` writes a whole tree of labs, `formats.write_session` one session of any kind, and
`real_mouse.write_real_mouse` the real mouse that ibllib carries among its tests.
Nothing is imported here, so that the package costs nothing to those who only name it.
"""
