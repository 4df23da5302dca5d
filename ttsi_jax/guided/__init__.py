"""Guided calls: the model writes a call by itself, and can write nothing that is not a call of a listed function.

`grammar` says what a call may look like (plain JSON schema, no dependency), `masks` which tokens may come next (with
llguidance, the extra `guided`), `decoding` picks tokens under these masks: forward step and choice are two programs,
so that the next masks are made while the device works.
"""
