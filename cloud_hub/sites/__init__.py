"""Hubs that have no line to each other: releases are carried one way, what devices saw the other."""
