"""Processes that answer questions, one file per way of starting them: on this machine (``local``) or in a Ray cluster (``ray``)."""
