"""The probe: a gentle, bounded load on somebody's own server that finds its capacity and the settings for it."""
