"""The HoloLens 2 side: hl2ss client, bridge and simulated headset."""
