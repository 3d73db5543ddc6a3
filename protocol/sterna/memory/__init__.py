"""Guest memory as the protocol sees it: sets of pages, page tables with their bytes, and the digest.

`bitmap` and `regions` say which pages, `pages` turns them into batches and back, `digest` keeps what
both sides must agree about. Nothing here does I/O or knows the time; numpy and xxhash touch the bytes.
"""
