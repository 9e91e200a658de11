"""The engine decides when tasks start and which may begin, runs them, and cleans up after them.

It knows the ports, the delivery and the domain, and nothing of HTTP requests or of
configuration. Begin with `timer`, then `dispatcher`, then `execution`: the way of one task.

- who may begin: `slots` shares them out, by `standing` (an application's) and `pace` (an
  origin's); `contents` bounds bytes; `quarantine` begins suspects in small lots;
  `reservations` let a task begin as it is added
- what runs: `registry`, and `inspection` looks into it
- what is kept in order: `janitor` has `leases`, `retention` and `set_back` do their chores;
  `clock_sync` and `agreed_time` keep the time; `app_changes` forgets applications that changed
- what is told: `shortage`, `pace_watch`
"""
