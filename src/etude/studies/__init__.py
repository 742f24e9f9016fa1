"""The studies, one folder each; `etude.registry` names them."""
