"""The hl2ss wire protocol (server 1.0.37), implemented independently from its layout.

Everything is little-endian and packed; `hns` is 100 ns.

Without sockets: `protocol` (ports, framing), `personal_video`, `spatial_input`, `research_mode`
(what clients ask of all other sensors), `vlc`, `depth`, `inertial`, `eye_tracker`, `microphone`
(payloads), `calibration`, `remote_configuration`, `unity_messages`, `guest_messages`,
`voice_input`, `picture_decoder`, and `conventions` (their matrices and times to ours).

With sockets: `connection`, `client` (video, spatial input, remote configuration), `sensor_client`
(Research Mode, eye tracker, microphone), `message_client` (Unity app, voice).
"""
