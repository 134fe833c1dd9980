"""From attenuation to picture: Beer-Lambert transmission, scatter, quantum noise, and the film's S-shaped curve."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Film:
    """centre, width: attenuation at mid grey and the slope of the curve around it; dose: photons per cm2 behind 1 unit
    of attenuation, relative (noise falls with its root); scatter: share of scattered radiation; blur_cm: focal spot and
    motion; bits: 8 or 16 stored levels come from `develop(levels=...)`."""

    centre: float = 2.9
    width: float = 0.76
    dose: float = 3.0e5
    scatter: float = 0.012
    blur_cm: float = 0.04


def develop(attenuation, film: Film, px_cm: float, rng: np.random.Generator, levels: int = 255) -> np.ndarray:
    """Attenuation [n, n] -> grey levels 0..levels, bright = dense (uint8, or uint16 above 255 levels).

    Scatter fogs the whole plate evenly, so that a finding changes the picture only where it changes the attenuation.
    """
    blurred = gaussian_filter(attenuation, film.blur_cm / px_cm, truncate=3.0, mode="nearest")
    photons = film.dose * px_cm**2 * (np.exp(-blurred) + film.scatter)
    counted = photons + np.sqrt(photons) * rng.standard_normal(photons.shape)
    log_signal = -np.log(np.maximum(counted, 0.5) / (film.dose * px_cm**2))
    grey = 1 / (1 + np.exp(-(log_signal - film.centre) / film.width))
    return np.rint(levels * np.clip(grey, 0, 1)).astype(np.uint8 if levels <= 255 else np.uint16)
