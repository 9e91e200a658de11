"""The three ports: what the core needs of the world, in its own words.

- `store` is the truth: tasks, attempts, leases. Only what it has committed is so.
- `queue` carries wake-ups. Losing, doubling or reordering them costs time only.
- `bus` carries signals between nodes, keeps nonces, and says who runs the timer.

They know the domain and nothing else. One adapter of each makes the embedded default;
others make a cluster. Begin with `store`.
"""
