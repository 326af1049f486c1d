"""
The shards as running things: lifecycle, sockets, supervision, and Ray.

The only floor that imports ray, and only in `ray_actors` and `ray_cluster`; every class here
also runs in a plain process.
"""
