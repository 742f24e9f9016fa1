"""Scenes like CLEVRTex's, rendered here: `scene` draws their numbers, `blender` their pictures, `driver` does many."""
