"""The typed edge of the C module: nothing else imports `nydusd._native`.

Every function releases the GIL while it works, takes buffers that the caller owns, checks all sizes
and reports by status codes. None of them keeps a pointer after it returns.
"""
