"""The hl2ss wire protocol (server 1.0.37), implemented independently from its layout.

Everything is little-endian and packed; `hns` is 100 ns. Without sockets: `protocol` (ports,
framing), `personal_video`, `spatial_input`, `remote_configuration`, and `conventions` (their
matrices and times to ours). With sockets: `client`.
"""
