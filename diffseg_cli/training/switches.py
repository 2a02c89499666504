"""The switches of the paper's ablations, from words to what is trained."""

from dataclasses import replace

from diffseg_cli.config import LookConfig, ModulesConfig, PamConfig, ScmConfig
from diffseg_cli.errors import UsageError
from diffseg_cli.models.perceptual_attention import MODES


def choose_modules(
    which: str,
    knowledge: str,
    pam_attentions: str,
    scm_scales: str,
    scm_separate: bool,
    *,
    pam: PamConfig,
    image_size: int | None = None,
    look: LookConfig | None = None,
) -> ModulesConfig:
    """What is trained, from the switches of the paper's ablations.

    Args:
        which: "scm+pam", "pam", "scm" or "none" (table 3). "pam" compares latents alone: the paper leaves the
            attention maps out with SCM, and so attention 2.
        knowledge: of `models.knowledge.KNOWLEDGE` (table 4).
        pam_attentions: three of "attention", "conv", "none", with commas (table 5).
        scm_scales: "all", "none" or numbers of scales, the finest 0, with commas (table 6).
        scm_separate: a trunk for each scale (table 6).
        pam: its other numbers.
        image_size: S, or None for the backbone's own.
        look: through the frozen network.

    Raises:
        UsageError: a switch that says none of these.
    """
    modes = tuple(pam_attentions.split(","))
    if len(modes) != 3 or not set(modes) <= set(MODES):
        raise UsageError(
            f"'{pam_attentions}' does not say what PAM's three attentions are.",
            "Give three of attention, conv and none, like attention,conv,none.",
        )
    if scm_scales not in ("all", "none") and not all(part.isdecimal() for part in scm_scales.split(",")):
        raise UsageError(f"'{scm_scales}' names no scales.", "Give all, none, or numbers like 0 or 0,1.")
    scm = None
    if which in ("scm+pam", "scm") and scm_scales != "none":
        scales = None if scm_scales == "all" else tuple(int(part) for part in scm_scales.split(","))
        scm = ScmConfig(shared=not scm_separate, scales=scales)
    if which == "pam":
        modes = (modes[0], "none", modes[2])
    chosen = replace(pam, modes=(modes[0], modes[1], modes[2])) if which in ("scm+pam", "pam") else None
    return ModulesConfig(scm, chosen, knowledge, image_size, look or LookConfig())
