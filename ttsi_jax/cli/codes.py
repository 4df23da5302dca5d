"""Exit codes of `ttsi-jax`."""

DONE = 0
SOME_FAILED = 1  # finished, but some inputs failed: each is named
BAD_INPUT = 2  # arguments, a task, a directory
BAD_MODEL = 3  # a model file that cannot be used
HOST_LOST = 75  # a process of a job of several hosts is gone: the same command resumes (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # the same command resumes
