"""Beam glue: each transform wraps pure functions of nearly the same name.

What the runners force on this package: elements are few and large (columns of many trials,
pointers instead of traces), because the local runner copies every element it shuffles several
times; and whatever a step writes is named by its input and complete when it appears, because an
element may be processed more than once.
"""
