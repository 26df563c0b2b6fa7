"""The class's effect on generated trials, and the best accuracy that it allows.

Model of one trial, in units of the session's background standard deviation, before the gain::

    trace = background(1/f + noise floor) + line noise
            + exp(LATENT_SCALE * a) * (evoked response + gamma burst)

The class acts on the latent log amplitude ``a`` alone. Inside a session ``a`` is a stationary
Gaussian AR(1) process over trials with unit variance: WT has mean 0 and correlation ``-dynamics``,
FMR1 has mean ``effect`` and correlation ``+dynamics``. With opposite correlations both covariances
have the same determinant and the log likelihood ratio of two trials is a multiple of their product,
so that the best accuracy from two trials is ``1/2 + arcsin(dynamics) / pi``; with ``effect = 0``
every single-trial distribution is N(0, 1) in both classes, so that one trial is at chance.

All else (gain, background, noise, latency, tuning, stimuli) is drawn without looking at the class.
A trace therefore tells of the class only what it tells of ``a``, and `bayes_accuracy` bounds every
classifier that sees ``n`` consecutive trials of an animal it does not know. The bound is nearly
attainable: the gamma burst is scaled by the session's own background power at `GAMMA_FREQ` and
does not depend on the stimulus, hence the log power of that band after the onset, less the baseline
window's, gives ``a`` back with a correlation above 0.95 whatever the gain. It is an upper bound for
trials on both sides of a rejected row, because the process runs on through the gap.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, linalg, signal

CONDITIONS: Final = ("WT", "FMR1")
BAYES_N_TRIALS: Final = (1, 2, 4, 8, 16)
LATENT_SCALE: Final = 0.5


def bayes_accuracy(n_trials: int, effect: float, dynamics: float) -> float:
    r"""Best accuracy, at equal priors, from the latents of consecutive trials.

    Parameters
    ----------
    n_trials : int
        Number of consecutive trials.
    effect, dynamics : float
        As in `SampleOptions`.

    Returns
    -------
    float
        One minus the error of the Gaussian likelihood ratio test, to about 1e-8.

    Notes
    -----
    With L the log likelihood ratio, the error is ``E0[min(1, exp(L))] / 2``. Write the minimum as
    ``exp(L/2) exp(-|L|/2)`` and the last factor by its Fourier transform ``1 / (1/4 + t^2)``; then

    .. math:: \mathrm{error} = \frac{1}{\pi} \int_0^{\pi/2}
              \mathrm{Re}\, M\!\left(\tfrac12 + \tfrac{i}{2} \tan\theta\right) d\theta

    where ``M(s)`` is the integral of ``p1^s p0^(1-s)``, known in closed form for two Gaussians. It
    is written here in the basis that makes both covariances diagonal (generalised eigenvalues). For
    equal covariances this is Craig's formula of the Gaussian tail, ``Phi(d'/2)`` (J. W. Craig,
    MILCOM 1991).
    """
    lag = np.abs(np.subtract.outer(np.arange(n_trials), np.arange(n_trials)))
    variances, basis = linalg.eigh(np.power(dynamics, lag), np.power(-dynamics, lag))
    squared_shifts = (effect * basis.sum(axis=0)) ** 2

    def hellinger(theta: float) -> float:
        s = 0.5 + 0.5j * np.tan(theta)
        log_terms = (
            np.log(s / variances + 1 - s)
            + s * np.log(variances)
            + s * (1 - s) * squared_shifts / (s + (1 - s) * variances)
        )
        return float(np.exp(-0.5 * log_terms.sum()).real)

    integral = integrate.quad(hellinger, 0, np.pi / 2, limit=1000, epsabs=1e-8)[0]
    return float(1 - integral / np.pi)


def latent_amplitudes(
    n_trials: int, mean: float, correlation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a stationary Gaussian AR(1) process of unit variance.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    mean : float
        Mean of the process.
    correlation : float
        Correlation of successive values, inside (-1, 1).
    rng : numpy.random.Generator
        Source of the innovations.

    Returns
    -------
    ndarray of float64, shape (n_trials,)
        The latents.
    """
    innovations = rng.standard_normal(n_trials)
    innovations[1:] *= np.sqrt(1 - correlation**2)
    return np.asarray(mean + signal.lfilter([1.0], [1.0, -correlation], innovations))
