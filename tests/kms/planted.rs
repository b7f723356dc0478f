//! Files that somebody planted who may use the CMK's public half, but is no mount of the volume.
