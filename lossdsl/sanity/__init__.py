"""Is a robust accuracy believable? Named checks with references, on any model: `check_model(model, x, y, Threat(8/255)).findings`."""

from lossdsl.sanity.findings import Check, Outcome, Report
from lossdsl.sanity.gate import check_model
from lossdsl.sanity.probes import Threat
from lossdsl.sanity.subject import Measured, Settings

__all__ = ["Check", "Measured", "Outcome", "Report", "Settings", "Threat", "check_model"]
