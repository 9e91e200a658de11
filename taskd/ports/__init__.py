"""The three ports: what the core needs of the world, in the core's terms.

- `store` is the truth: tasks, attempts, leases. Nothing counts before it is committed there.
- `queue` carries wake-ups. Losing, doubling or reordering them costs time only.
- `bus` carries signals between nodes, keeps nonces, and says which node leads the timer.

They know the domain and nothing else. One adapter of each makes the embedded default;
others make a cluster. Begin with `store`.
"""
