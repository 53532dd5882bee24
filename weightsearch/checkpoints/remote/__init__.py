"""Files that lie in object stores, on hubs and web servers, as paths like those of this machine's disk."""
