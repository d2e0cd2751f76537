"""IOD lines to observations: angle formats, epochs, times, uncertainties, sites."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skyfield.api import load
from skyfield.framelib import true_equator_and_equinox_of_date
from skyfield.positionlib import position_of_radec

from sda_ops.astro.sites import Site
from sda_ops.records.observation import Observation, OpticalTarget, Uncertainty
from sda_ops.wire import iod

INGEST = 1_790_000_000_000_000_001
LINE = "12345 98 123A   2007 G 20081122112233444 56 {code} {angles} {mx} S"

ARCSECOND = math.radians(1 / 3600)
A_TENTH_OF_A_MILLIARCSECOND = 1e-4 * ARCSECOND
TWENTY_ARCSECONDS = 20 * ARCSECOND


def real(path: str) -> bytes:
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    if not (root / path).exists():
        pytest.skip(f"real data absent: no {root / path} (set SDA_DATA_DIR)")
    return (root / path).read_bytes()


def line(*, code: str = "25", angles: str = "1122334+112233", mx: str = "37") -> str:
    return LINE.format(code=code, angles=angles, mx=mx)


def decode_one(text: str, *, sigma_angle_rad: float | None = None) -> Observation:
    observations, malformed = iod.decode(text.encode(), ingest_timestamp=INGEST, sigma_angle_rad=sigma_angle_rad)
    assert malformed == []
    (observation,) = observations
    return observation


def target_of(text: str) -> OpticalTarget:
    target = decode_one(text).target
    assert isinstance(target, OpticalTarget)
    return target


def reason_of(text: str) -> str:
    observations, (malformed,) = iod.decode(text.encode(), ingest_timestamp=INGEST)
    assert observations == []
    assert malformed.frame == text.encode()
    return malformed.reason


def separation_rad(one: OpticalTarget, other: OpticalTarget) -> float:
    a, b = (
        np.array([math.cos(d) * math.cos(r), math.cos(d) * math.sin(r), math.sin(d)])
        for r, d in ((t.right_ascension_rad, t.declination_rad) for t in (one, other))
    )
    return float(2 * math.asin(float(np.linalg.norm(a - b)) / 2))


def test_a_line_becomes_an_observation_field_by_field() -> None:
    """Station, time, direction and uncertainty are in the record; the object that the observer names is in no field."""
    text = "37386 11 014A   4172 E 20190501213235845 17 25 2008223+702585 37 S"
    observation = decode_one(text)
    expected = OpticalTarget(math.radians(15 * (20 + 8.223 / 60)), math.radians(70 + 25.85 / 60))
    assert separation_rad(target_of(text), expected) < 1e-12
    assert observation.uncertainty.sigma_angle_rad == pytest.approx(math.radians(0.3 / 60))
    assert observation == Observation(
        observation.observation_id,
        "optical-4172",
        "optical",
        1_556_746_355_845_000_000,
        INGEST,
        observation.target,
        Uncertainty(sigma_angle_rad=observation.uncertainty.sigma_angle_rad),
    )
    assert "37386" not in repr(observation)
    assert "014A" not in repr(observation)


@pytest.mark.parametrize(
    ("code", "ascension_h", "declination_deg", "sigma_rad"),
    [
        ("1", 11 + 22 / 60 + 33.4 / 3600, 11 + 22 / 60 + 33 / 3600, 0.3 * ARCSECOND),
        ("2", 11 + 22.334 / 60, 11 + 22.33 / 60, 0.3 * 60 * ARCSECOND),
        ("3", 11 + 22.334 / 60, 11.2233, math.radians(0.3)),
        ("7", 11 + 22 / 60 + 33.4 / 3600, 11.2233, math.radians(0.3)),
    ],
)
def test_each_angle_format_reads_digits_by_its_definition(
    code: str, ascension_h: float, declination_deg: float, sigma_rad: float
) -> None:
    """Hours, minutes, seconds and degrees as in the format's description, the uncertainty in the format's unit."""
    observation = decode_one(line(code=f"{code}5"))
    expected = OpticalTarget(math.radians(15 * ascension_h), math.radians(declination_deg))
    assert separation_rad(target_of(line(code=f"{code}5")), expected) < 1e-12
    assert observation.uncertainty.sigma_angle_rad == pytest.approx(sigma_rad)


@pytest.mark.parametrize(
    ("short", "padded"),
    [("1122   +1122  ", "1122000+112200"), ("11223  +112   ", "1122300+112000"), ("1      -0     ", None)],
)
def test_digits_that_were_not_measured_are_zero(short: str, padded: str | None) -> None:
    """They are blank at the right, as in the format's own examples."""
    given_short = target_of(line(angles=short))
    expected = OpticalTarget(math.radians(150), 0.0) if padded is None else target_of(line(angles=padded))
    assert separation_rad(given_short, expected) < 1e-12


def test_a_declination_just_below_the_equator_is_negative() -> None:
    """The sign is read also if the degrees are zero."""
    assert target_of(line(angles="1658235-000969")).declination_rad == pytest.approx(math.radians(-9.69 / 60))


def test_the_pole_is_a_valid_declination() -> None:
    """90 degrees are the limit."""
    assert target_of(line(angles="0000000-900000")).declination_rad == pytest.approx(-math.pi / 2)


def test_a_station_has_no_leading_zeros() -> None:
    """The source and the list of sites use the same number."""
    assert decode_one(line().replace(" 2007 ", " 0433 ")).source_id == "optical-433"


@pytest.mark.parametrize(
    ("time", "ns"),
    [
        ("20081122112233444", 444_000_000),
        ("2008112211223344 ", 440_000_000),
        ("200811221122334  ", 400_000_000),
        ("20081122112233   ", 0),
    ],
)
def test_a_time_has_the_written_precision(time: str, ns: int) -> None:
    """To the millisecond at most, to the second at least."""
    observation = decode_one(line().replace("20081122112233444", time))
    assert observation.sensor_timestamp == 1_227_352_953_000_000_000 + ns


def test_a_measurement_in_a_leap_second_is_rejected_and_the_next_one_keeps_its_time() -> None:
    """23:59:60.500 at the end of 2016 has no timestamp; 00:00:00.500 has its own. Other 60th seconds do not exist."""
    lines = [line().replace("20081122112233444", time) for time in ("20161231235960500", "20170101000000500")]
    (observation,), (malformed,) = iod.decode("\n".join(lines).encode(), ingest_timestamp=INGEST)
    assert observation.sensor_timestamp == 1_483_228_800_500_000_000
    assert malformed.reason.startswith("IOD line 1: columns 24-40: the time is within a leap second")
    assert malformed.frame == lines[0].encode()
    assert reason_of(line().replace("20081122112233444", "20081122112260   ")) == (
        "IOD line 1: columns 24-40: expected a time of day, got 11:22:60, and there is no leap second at that time"
    )


def test_a_blank_epoch_code_means_the_equinox_of_date() -> None:
    """As 0 does: "0 or blank = of date" in the format's description of column 46."""
    assert target_of(line(code="2 ")) == target_of(line(code="20")) != target_of(line(code="25"))


@pytest.mark.parametrize(("mx", "arcminutes"), [("37", 0.3), ("18", 1.0), ("56", 0.05), ("99", 90.0), ("10", 1e-8)])
def test_an_uncertainty_is_a_digit_and_a_power_of_ten(mx: str, arcminutes: float) -> None:
    """``M * 10^(X - 8)``, here of arc minutes."""
    sigma_rad = decode_one(line(mx=mx)).uncertainty.sigma_angle_rad
    assert sigma_rad == pytest.approx(math.radians(arcminutes / 60), rel=1e-12)


@pytest.mark.parametrize("mx", ["  ", "07"])
def test_the_feeds_uncertainty_is_used_for_a_line_without_one(mx: str) -> None:
    """Blank or zero: no measurement is free of error."""
    assert decode_one(line(mx=mx), sigma_angle_rad=1e-4).uncertainty == Uncertainty(sigma_angle_rad=1e-4)
    assert decode_one(line(mx=mx)).uncertainty == Uncertainty()


def test_a_line_may_end_after_its_angles() -> None:
    """The fields after them, uncertainty and brightness, may be missing."""
    assert decode_one(line()[:61], sigma_angle_rad=1e-4).uncertainty == Uncertainty(sigma_angle_rad=1e-4)


def test_b1950_is_converted_to_j2000_as_published() -> None:
    """SOFA's own test of ``Fk45z`` (t_sofa_c.c, 2021), at Besselian epoch 1954.677617625256806: within 0.1 milliarcseconds.

    The same holds for a line of that night and place, within its digits.
    """
    epoch_ns = round((2_415_020.31352 + 54.677617625256806 * 365.242198781 - 2_440_587.5) * 86_400) * 10**9
    published = OpticalTarget(0.02719295911606862303, -0.1115766001565926892)
    exact = iod._j2000("4", 0.01602284975382960982, -0.1164347929099906024, epoch_ns)
    assert separation_rad(exact, published) < A_TENTH_OF_A_MILLIARCSECOND
    text = line(code="14", angles="0003403-064016").replace("20081122112233444", "19540904000000000")
    assert separation_rad(target_of(text), published) < 2 * ARCSECOND


def test_the_equinox_of_date_agrees_with_skyfield_within_nutation() -> None:
    """Skyfield (IAU 2000A) takes "of date" as the true equinox: at most 20 arcseconds apart, after a motion of 7 arcminutes."""
    text = line(code="20", angles="1122334+112233").replace("2008", "2018", 1)
    moment = load.timescale(builtin=True).utc(2018, 11, 22, 11, 22, 33.444)
    of_date = position_of_radec(11 + 22.334 / 60, 11 + 22.33 / 60, t=moment)
    to_j2000 = true_equator_and_equinox_of_date.rotation_at(moment).T
    x, y, z = to_j2000 @ of_date.position.au
    expected = OpticalTarget(math.atan2(y, x) % math.tau, math.asin(z / math.hypot(x, y, z)))
    got = target_of(text)
    assert separation_rad(got, expected) < TWENTY_ARCSECONDS
    assert separation_rad(got, target_of(text.replace(" 20 ", " 25 "))) > 300 * ARCSECOND
    assert math.radians(359) < target_of(text.replace("1122334+", "0000000+")).right_ascension_rad < math.tau


@pytest.mark.parametrize("code", ["45", "55", "65"])
def test_azimuth_and_elevation_are_rejected(code: str) -> None:
    """A record with a direction from the horizon needs a range."""
    assert reason_of(line(code=code)) == (
        f"IOD line 1: column 45: angle format {code[0]} is azimuth and elevation: a record with these needs a range"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line(code="85"), "column 45: expected an angle format 1 to 7, got '8'"),
        (line(code=" 5"), "column 45: expected an angle format 1 to 7, got ' '"),
        (line(code="23"), "column 46: expected an epoch of date (0 or blank), 1950 (4) or 2000 (5), got '3' (1900), which is not supported"),
        (line(code="29"), "column 46: expected an epoch of date (0 or blank), 1950 (4) or 2000 (5), got '9'"),
        (line(angles="112 334+112233"), "columns 48-61: expected seven digits, a sign and six digits, got '112 334+112233'"),
        (line(angles="112233+1122333"), "columns 48-61: expected seven digits, a sign and six digits, got '112233+1122333'"),
        (line(angles="1122334 112233"), "columns 48-61: expected seven digits, a sign and six digits, got '1122334 112233'"),
        (line(angles="2400000+112233"), "columns 48-61: expected angles below 24 h and up to 90 degrees, got '2400000+112233'"),
        (line(angles="1122334+900001"), "columns 48-61: expected angles below 24 h and up to 90 degrees, got '1122334+900001'"),
        (line(angles="1160000+112233"), "columns 48-61: expected minutes and seconds below 60, got 60"),
        (line(mx="3x"), "columns 63-64: expected an uncertainty MX, got '3x'"),
        (line().replace(" 2007 ", " 20A7 "), "columns 17-20: expected a station's number, got '20A7'"),
        (line().replace("20081322", "20081122", 1).replace("20081122", "20081322"), "columns 24-40: expected a date, got '20081322112233444'"),
        (line().replace("20081122112233444", "20081122242233444"), "columns 24-40: expected a time of day, got 24:22:33"),
        (line().replace("20081122112233444", "200811221122     "), "columns 24-40: expected a time YYYYMMDDHHMMSSsss, to the second at least, got '200811221122     '"),
        ("12345 98 123UNK 2007 F 20081122112233444 28                      V+095 05", "columns 45-61: no position"),
        ("                2007 O 20081122", "columns 45-61: no position"),
        ("Clear skies here, but a bright Moon.", "columns 17-20: expected a station's number, got ', bu'"),
    ],
)  # fmt: skip
def test_a_line_without_a_position_is_rejected_with_the_reason(text: str, reason: str) -> None:
    """The reason names the line and the columns; the frame is the line."""
    assert reason_of(text) == f"IOD line 1: {reason}"


def test_a_bad_line_costs_only_itself() -> None:
    """Blank lines and comments are skipped; order and line numbers are the file's."""
    text = f"# a comment\n\n{line()}\r\nnonsense\n{line(mx='38')}\n"
    observations, malformed = iod.decode(text.encode(), ingest_timestamp=INGEST)
    assert [o.uncertainty.sigma_angle_rad for o in observations] == pytest.approx(
        [0.3 * 60 * ARCSECOND, 180 * ARCSECOND]
    )
    assert [str(each) for each in malformed] == ["IOD line 4: columns 17-20: expected a station's number, got '    '"]


def test_the_id_is_made_from_the_line() -> None:
    """The same line is the same observation at any time and with any blanks at its end; another line is another observation."""
    first = decode_one(line())
    again, _ = iod.decode(f"\n{line()}  \r\n".encode(), ingest_timestamp=INGEST + 1)
    assert again[0].observation_id == first.observation_id
    assert decode_one(line(mx="38")).observation_id != first.observation_id


@given(st.text(alphabet=st.sampled_from("0123456789+- GS\n"), max_size=200) | st.text(max_size=100))
def test_no_text_raises_an_error(text: str) -> None:
    """Every line that is neither blank nor a comment is an observation or malformed."""
    observations, malformed = iod.decode(text.encode(errors="surrogatepass"), ingest_timestamp=INGEST)
    lines = [raw.decode("utf-8-sig", "replace").rstrip() for raw in text.encode(errors="surrogatepass").splitlines()]
    assert len(observations) + len(malformed) == sum(1 for each in lines if each and not each.startswith("#"))


@given(st.floats(0, 23.999), st.floats(-89.99, 89.99))
def test_degrees_are_read_to_their_last_digit(ascension_h: float, declination_deg: float) -> None:
    """Format 3: a thousandth of a minute of right ascension and a ten-thousandth of a degree of declination."""
    hours, thousandths = divmod(math.floor(ascension_h * 60_000), 60_000)
    sign = "-" if declination_deg < 0 else "+"
    text = line(code="35", angles=f"{hours:02}{thousandths:05}{sign}{math.floor(abs(declination_deg) * 10_000):06}")
    target = target_of(text)
    assert math.degrees(target.right_ascension_rad) / 15 == pytest.approx(ascension_h, abs=1.1 / 60_000)
    assert math.degrees(target.declination_rad) == pytest.approx(declination_deg, abs=1.1e-4)


def test_iod_is_detected() -> None:
    """One line within prose is enough; a TDM has none."""
    assert iod.is_iod(f"Observations of last night:\n\n{line()}".encode())
    assert not iod.is_iod(b"CCSDS_TDM_VERS = 1.0\n")
    assert not iod.is_iod(b"1 37386U 11014A   19116.95390559 0.00000000  00000-0  00000-0 0    00\n")


def test_the_real_positions_of_noss_3_5_are_all_read() -> None:
    """29 lines of three sites (cbassa/tle-generator, 2019): each is a position with its own id, and the object is not used."""
    content = real("optical_noss_2019/tlegen_37386.dat")
    observations, malformed = iod.decode(content, ingest_timestamp=INGEST)
    assert malformed == []
    assert len({o.observation_id for o in observations}) == 29
    counts = {source: sum(o.source_id == source for o in observations) for source in ("optical-4171", "optical-4172")}
    assert counts == {"optical-4171": 23, "optical-4172": 4}
    assert {o.track_id for o in observations} == {None}
    assert [o.sensor_timestamp for o in observations] == sorted(o.sensor_timestamp for o in observations)


def test_the_real_sites_are_read() -> None:
    """Number, place and observer of all three."""
    sites = iod.read_sites(real("optical_noss_2019/tlegen_sites.txt").decode())
    assert sites == {
        4171: Site.from_degrees("Cees Bassa", latitude_deg=52.8344, longitude_deg=6.3785, height_m=10),
        4172: Site.from_degrees("Leo Barhorst", latitude_deg=52.3713, longitude_deg=5.2580, height_m=-3),
        8336: Site.from_degrees("Brad Young", latitude_deg=36.1397, longitude_deg=-95.9838, height_m=205),
    }


def test_a_site_may_have_any_observer_or_none() -> None:
    """Headings, comments and blank lines are skipped; a site without a name has its code; the later line counts."""
    text = "\ufeff# No ID Latitude\nNo ID   Latitude\n\n0433 GR -33.94058 18.5129 10\n 7 Ü 1 2 3  Björn  O'Neil, Jr. (2nd)\n7 XX 4 5 6 A\n"
    assert iod.read_sites(text) == {
        433: Site.from_degrees("GR", latitude_deg=-33.94058, longitude_deg=18.5129, height_m=10),
        7: Site.from_degrees("A", latitude_deg=4, longitude_deg=5, height_m=6),
    }
    assert iod.read_sites(text.replace("7 XX 4 5 6 A", ""))[7].name == "Björn  O'Neil, Jr. (2nd)"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("7 XX 4 5", "expected number, code, latitude, longitude and height"),
        ("7 XX 91 5 6 A", "expected a latitude within +-90 and a longitude within +-360 degrees"),
        ("7 XX 4 361 6 A", "expected a latitude within +-90 and a longitude within +-360 degrees"),
        ("7 XX 4.5.6 5 6 A", "could not convert string to float: '4.5.6'"),
    ],
)
def test_an_invalid_site_is_an_error(row: str, reason: str) -> None:
    """A list with an invalid site is not read as a shorter list."""
    with pytest.raises(ValueError, match="sites line") as raised:
        iod.read_sites(f"# sites\n{row}\n")
    assert str(raised.value) == f"sites line 2: {reason}, got {row!r}"
