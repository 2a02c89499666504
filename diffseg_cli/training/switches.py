"""The switches of the paper's ablations, from words to what is trained."""

from diffseg_cli.assembly import choose_look
from diffseg_cli.choices.training import FormChoice
from diffseg_cli.config import LookConfig, ModulesConfig, PamConfig, ScmConfig
from diffseg_cli.errors import UsageError
from diffseg_cli.models.perceptual_attention import MODES


def choose_modules(form: FormChoice, start: LookConfig | None = None) -> ModulesConfig:
    """What is trained.

    Args:
        form: `modules` is "scm+pam", "scm", "pam" or "none" (table 3; "pam" compares latents alone: the paper
            leaves the attention maps out with SCM, and so attention 2), `knowledge` one of
            `models.knowledge.KNOWLEDGE` (table 4), `pam_attentions` three of "attention", "conv" and "none"
            (table 5), `scm_scales` "all", "none" or numbers of scales, the finest 0, and `scm_separate` gives
            each a trunk of its own (table 6).
        start: how the modules that training starts from looked.

    Raises:
        UsageError: a switch that says none of these.
    """
    modes = tuple(form.pam_attentions.split(","))
    if len(modes) != 3 or not set(modes) <= set(MODES):
        raise UsageError(
            f"'{form.pam_attentions}' does not say what PAM's three attentions are.",
            "Give three of attention, conv and none, like attention,conv,none.",
        )
    numbers = form.scm_scales.split(",")
    if form.scm_scales not in ("all", "none") and not all(part.isdecimal() for part in numbers):
        raise UsageError(f"'{form.scm_scales}' names no scales.", "Give all, none, or numbers like 0 or 0,1.")
    scm = pam = None
    if "scm" in form.modules and form.scm_scales != "none":
        scales = None if form.scm_scales == "all" else tuple(int(part) for part in numbers)
        scm = ScmConfig(shared=not form.scm_separate, scales=scales)
    if "pam" in form.modules:
        second = "none" if form.modules == "pam" else modes[1]
        pam = PamConfig(
            modes=(modes[0], second, modes[2]),
            channel_dropout=form.channel_dropout,
            query_dropout=form.query_dropout,
        )
    look = choose_look(form.timesteps, form.cross_map, form.support_crop, start)
    return ModulesConfig(scm, pam, form.knowledge, form.image_size, look)
