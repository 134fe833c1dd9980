"""The ECG simulator: what was asked for is in the signal; neurokit2 and median beats judge."""

import warnings

import numpy as np
import pytest

from shared.ecg.record import LEADS
from shared.ecg.simulate import NAMES, conditions, simulate_findings

INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]
CONDITIONS = conditions()
FS_HZ = 500.0


def lead(signal_mv, name):
    return signal_mv[LEADS.index(name)]


def r_peaks(signal_mv, method="neurokit"):
    """neurokit2's R peaks (sample numbers) in the lead whose count is the median of several leads.

    Its default method places peaks exactly, so beats can be averaged; "kalidas2017" counts them right even when P and T
    waves stand alone, as in complete AV block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import neurokit2 as nk

        found = []
        for name in ("II", "V5", "V2", "I", "V6"):
            clean = nk.ecg_clean(lead(signal_mv, name), sampling_rate=int(FS_HZ))
            found.append(np.asarray(nk.ecg_peaks(clean, int(FS_HZ), method)[1]["ECG_R_Peaks"], int))
    found.sort(key=len)
    return found[len(found) // 2]


def median_beat(signal_mv, peaks, before=150, after=150):
    eight = signal_mv[INDEPENDENT]
    inside = [p for p in peaks if before <= p < eight.shape[1] - after]
    return np.median([eight[:, p - before : p + after] for p in inside], 0)


def qrs_ms(signal_mv, peaks) -> float:
    """Width of the median beat where the spatial velocity exceeds 11 % of its maximum."""
    speed = np.linalg.norm(np.gradient(median_beat(signal_mv, peaks), axis=1), axis=0)
    speed = np.convolve(speed, np.ones(4) / 4, "same")[90:220]
    above = np.flatnonzero(speed > 0.11 * speed.max())
    return float(above[-1] - above[0]) / FS_HZ * 1000


def drawn(name, n=5, seed=11, noisy=True, method="neurokit"):
    """Signals of one condition and neurokit2's R peaks in them."""
    signals_mv, measures = simulate_findings([CONDITIONS[name]] * n, seed, noisy=noisy)
    return signals_mv, [r_peaks(signal_mv, method) for signal_mv in signals_mv], measures


def rates(all_peaks):
    return np.array([60 * FS_HZ / np.median(np.diff(peaks)) for peaks in all_peaks])


def irregularity(all_peaks):
    return np.array([np.std(np.diff(peaks)) / np.mean(np.diff(peaks)) for peaks in all_peaks])


def amplitude(signals_mv, all_peaks, name, start_ms, end_ms):
    """Most negative and most positive value of a lead's median beat between two times after R, [n] each, in mV."""
    low, high = [], []
    for signal_mv, peaks in zip(signals_mv, all_peaks, strict=True):
        beat = median_beat(signal_mv, peaks, 150, 200)
        row = beat[[LEADS[i] for i in INDEPENDENT].index(name)]
        row = row - np.median(row[:20])  # TP segment
        part = row[150 + round(start_ms / 2) : 150 + round(end_ms / 2)]
        low.append(part.min())
        high.append(part.max())
    return np.array(low), np.array(high)


# --- rate and rhythm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("normal", 58, 102),
        ("sinus_bradycardia", 34, 60),
        ("sinus_tachycardia", 100, 150),
        ("supraventricular_tachycardia", 148, 218),
        ("junctional_rhythm", 34, 62),
        ("av_block_3", 28, 48),
    ],
)
def test_heart_rate(name, low, high):
    _, peaks, measures = drawn(name, method="kalidas2017")
    measured = rates(peaks)
    assert ((measured > low) & (measured < high)).mean() >= 0.8, measured
    assert np.median(np.abs(measured - 60_000 / measures["rr_ms"])) < 4


def test_irregular_rhythms():
    regular = irregularity(drawn("normal")[1])
    assert np.median(regular) < 0.05
    for name in ("atrial_fibrillation", "sinus_arrhythmia", "pac", "pvc", "av_block_2"):
        assert np.median(irregularity(drawn(name)[1])) > max(0.07, 2 * np.median(regular)), name
    assert np.median(irregularity(drawn("supraventricular_tachycardia")[1])) < 0.03


def test_atrial_fibrillation_has_no_p_wave_and_flutter_has_300_waves_a_minute():
    def p_height(name):
        signals_mv, peaks, _ = drawn(name, noisy=False)
        return np.median(amplitude(signals_mv, peaks, "II", -200, -60)[1])

    assert p_height("normal") > 0.08
    assert p_height("junctional_rhythm") < 0.03
    assert p_height("atrial_fibrillation") < 0.6 * p_height("normal")  # f-waves are not tied to the beats
    signals_mv, _, _ = drawn("atrial_flutter", noisy=False)
    clock = np.fft.rfftfreq(5000, 1 / FS_HZ)
    band = (clock > 4.2) & (clock < 5.8)
    for signal_mv in signals_mv:
        power = np.abs(np.fft.rfft(lead(signal_mv, "III") * np.hanning(5000))) ** 2
        peak = clock[band][power[band].argmax()]
        assert 4.5 < peak < 5.4 and power[band].max() > 8 * np.median(power[(clock > 3) & (clock < 12)])


@pytest.mark.slow
def test_every_regular_condition_has_the_rate_that_was_asked_for():
    judged = 0
    for name in NAMES:
        if name in ("atrial_fibrillation", "atrial_flutter", "pvc", "bigeminy", "trigeminy", "pac", "av_block_2"):
            continue
        _, peaks, measures = drawn(name, 12, seed=21, method="kalidas2017")
        error = np.abs(rates(peaks) - 60_000 / measures["rr_ms"])
        assert np.mean(error < 6) >= 0.75, (name, error)
        judged += 1
    assert judged >= 38


# --- intervals, axis, shape -------------------------------------------------------------------------------------------


def test_pr_interval():
    def p_peak_to_qrs_onset_ms(name):
        signals_mv, all_peaks, _ = drawn(name, noisy=False)
        values = []
        for signal_mv, peaks in zip(signals_mv, all_peaks, strict=True):
            beat = median_beat(signal_mv, peaks, 200, 50)
            speed = np.linalg.norm(np.gradient(beat, axis=1), axis=0)
            onset = 140 + int(np.flatnonzero(speed[140:] > 0.11 * speed.max())[0])
            values.append((onset - (40 + beat[1, 40 : onset - 8].argmax())) * 2)
        return np.median(values)

    normal = p_peak_to_qrs_onset_ms("normal")
    assert 60 < normal < 150
    assert p_peak_to_qrs_onset_ms("av_block_1") > normal + 60
    assert p_peak_to_qrs_onset_ms("wpw") < normal - 25


def test_qrs_duration():
    width = {}
    for name in ("normal", "incomplete_rbbb", "lbbb", "rbbb", "ivcd", "wpw", "paced_rhythm"):
        signals_mv, peaks, _ = drawn(name, noisy=False)
        width[name] = np.median([qrs_ms(s, p) for s, p in zip(signals_mv, peaks, strict=True)])
    assert width["normal"] < 100
    assert width["normal"] < width["incomplete_rbbb"] < 125
    for name in ("lbbb", "rbbb", "paced_rhythm"):
        assert width[name] > 118, width
    for name in ("ivcd", "wpw"):
        assert width[name] > width["normal"] + 18, width


def axis_deg(signal_mv, peaks) -> float:
    beat = median_beat(signal_mv, peaks, 60, 60)
    beat = beat - beat[:, :8].mean(1, keepdims=True)
    one, two = beat[0].sum(), beat[1].sum()
    return float(np.rad2deg(np.arctan2((two - one / 2) * 2 / np.sqrt(3), one)))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("normal", -30, 100), ("lafb", -100, -38), ("left_axis_deviation", -70, -20), ("right_axis_deviation", 88, 150),
     ("lpfb", 95, 165)],
)  # fmt: skip
def test_frontal_axis(name, low, high):
    signals_mv, peaks, _ = drawn(name, 9, noisy=False)
    measured = [axis_deg(s, p) for s, p in zip(signals_mv, peaks, strict=True)]
    assert low < np.median(measured) < high, measured


def test_morphology_where_a_cardiologist_looks():
    def range_mv(name, lead_name, start_ms, end_ms):
        signals_mv, peaks, _ = simulate_and_peaks(name)
        low, high = amplitude(signals_mv, peaks, lead_name, start_ms, end_ms)
        return np.median(low), np.median(high)

    def simulate_and_peaks(name):
        return drawn(name, 9, noisy=False)

    assert range_mv("rbbb", "V1", 20, 110)[1] > 0.35  # R' in V1
    assert range_mv("rbbb", "V6", 20, 110)[0] < -0.2  # wide S in V6
    assert range_mv("lbbb", "V1", -60, 110)[0] < -0.8  # QS or rS in V1
    assert range_mv("lbbb", "V6", 180, 330)[0] < -0.1  # discordant T
    assert range_mv("inferior_mi", "II", -50, -5)[0] < range_mv("normal", "II", -50, -5)[0] - 0.15  # Q in II
    assert range_mv("anterior_mi", "V3", -60, 60)[1] < range_mv("normal", "V3", -60, 60)[1] * 0.6  # lost R
    assert range_mv("lvh", "V5", -60, 60)[1] > range_mv("normal", "V5", -60, 60)[1] * 1.3
    assert range_mv("rvh", "V1", -60, 60)[1] > 0.5
    assert range_mv("low_voltage", "II", -60, 60)[1] < 0.5
    assert range_mv("t_wave_inversion", "II", 150, 380)[0] < -0.1
    assert range_mv("t_wave_abnormality", "V5", 150, 380)[1] < 0.5 * range_mv("normal", "V5", 150, 380)[1]
    assert range_mv("anterior_ischemia", "V3", 100, 380)[0] < -0.15
