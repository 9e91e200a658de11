"""The API's HTTP/1.1: connections and their bounds, requests and answers as bytes.

It reads no task and checks no signature. Begin with `connection`, which reads, answers and
writes, one request after another; `router` finds the endpoint, and turns errors into answers.
"""
