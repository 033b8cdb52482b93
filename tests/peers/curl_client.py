"""One HTTPS request by a given libcurl: ``curl_client.py LIBRARY HOST PORT CA-FILE``;
with the library alone, only its version.

Debian's curl command has one TLS library; its libcurl comes with three, which this calls.
"""

import ctypes
import sys

OBJECT = 10_000
URL, CAINFO, RESOLVE = OBJECT + 2, OBJECT + 65, OBJECT + 203
"""CURLoption, curl.h."""


class Slist(ctypes.Structure):
    """struct curl_slist."""


def main(library: str, host: str = "", port: str = "", ca: str = "") -> int:
    curl = ctypes.CDLL(library)
    curl.curl_easy_init.restype = ctypes.c_void_p
    curl.curl_slist_append.restype = ctypes.POINTER(Slist)
    curl.curl_easy_strerror.restype = curl.curl_version.restype = ctypes.c_char_p
    print(curl.curl_version().decode(), flush=True)
    if not host:
        return 0
    handle = ctypes.c_void_p(curl.curl_easy_init())
    resolve = curl.curl_slist_append(None, f"{host}:{port}:127.0.0.1".encode())
    curl.curl_easy_setopt(handle, URL, f"https://{host}:{port}/".encode())
    curl.curl_easy_setopt(handle, CAINFO, ca.encode())
    curl.curl_easy_setopt(handle, RESOLVE, resolve)
    code = int(curl.curl_easy_perform(handle))
    if code:
        print(curl.curl_easy_strerror(code).decode(), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
