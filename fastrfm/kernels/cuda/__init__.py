"""Device twins of the compiled loops: one file for each file beside this folder, the same names and argument order.

Scalar arithmetic that both targets share is one undecorated function in the twin's file, compiled for either.
"""
