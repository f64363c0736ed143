"""TFLite files that somebody gives, to be measured as they are: a third kind of subject beside operators and networks.

Nothing is known of such a file but its bytes, so their hash is what it is.
"""

from functools import cached_property
from typing import Literal

from latency_contract.canonical import Contract, Sha256, content_hash


class TFLiteModel(Contract):
    """A file that was given to the service with `PUT /v1/models/{sha256}`."""

    kind: Literal["tflite"] = "tflite"
    sha256: Sha256  # of the file's bytes

    @cached_property
    def id(self) -> str:
        """Hash of the canonical JSON, as with every subject."""
        return content_hash(self)

    @property
    def key(self) -> str:
        """The text that names it to people."""
        return f"TFLite_{self.sha256[:12]}"
