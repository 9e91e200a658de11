"""The API's HTTP/1.1: connections and their bounds, requests and answers as bytes.

It knows nothing of tasks, nor of what an endpoint does. Begin with `connection`, which
reads, answers and writes, one request after another; `router` finds the endpoint.
"""
