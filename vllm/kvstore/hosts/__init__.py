"""Shared memory of several hosts: who has what stands in Redis, blocks go from host to host by TCP.

    ring.py        which hosts keep a path: consistent hashing
    directory.py   which hosts are there and what they have, in Redis
    talk.py        frames over TCP, with a handshake by a shared secret
    peer.py        a host's server: reads from and writes to its daemon for others
    others.py      lines to those servers
    keys.py        what blocks are called between hosts
    cache.py       a cache over the local daemon that asks other hosts for what is not here

Whatever fails on the way to another host is a miss.
"""

from vllm.kvstore.hosts.cache import HostsConfig

__all__ = ["HostsConfig"]
