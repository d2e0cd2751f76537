"""How pool and worker exchange arrays: invitation, listener, authentication, connection, TLS and the frames on the wire."""
