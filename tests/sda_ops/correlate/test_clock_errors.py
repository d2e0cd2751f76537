"""Sensors whose clocks are wrong."""

from __future__ import annotations

import msgspec
import pytest

from sda_ops.correlate.associate import AssociationRules
from sda_ops.correlate.sensors import Sensor
from sda_ops.records.observation import Uncertainty
from tests.scenes.correlation import TEIDE, TROMSO
from tests.sda_ops.correlate.test_associate import REPORTS, correlated, high_over, number_of

PRECISE = Uncertainty(sigma_range_m=1.0, sigma_range_rate_m_s=0.1, sigma_angle_rad=1e-6)


@pytest.mark.parametrize(("kind", "squared"), [*((kind, 1.0) for kind in REPORTS if kind != "beacon"), ("beacon", 2.0)])
def test_an_error_of_the_clock_within_its_bound_is_no_other_object(kind: str, squared: float) -> None:
    """In low orbit, dated late by one standard deviation of the clock, 0.6 s or 4.3 km: in every component together as far off
    as it should be, so that the squared distance is 1. A beacon's position and velocity are taken as independent: 2."""
    report, over, _ = REPORTS[kind]
    row, moment = high_over(over)
    seen = report(moment)
    late = msgspec.structs.replace(seen, sensor_timestamp=seen.sensor_timestamp + round(1e9 / 3**0.5))
    sensors = {"radar-1": Sensor(TROMSO, PRECISE), "optical-1": Sensor(TEIDE, PRECISE), "isl-1": Sensor(None)}
    (as_if_exact,) = correlated(late, sensors=sensors)
    assert as_if_exact.association == "uct"
    (found,) = correlated(late, sensors=sensors, rules=AssociationRules(clock_error_s={seen.source_kind: 1.0}))
    assert found.catalog_number == number_of(row)
    # The rest is the error of the element set.
    assert found.mahalanobis_squared == pytest.approx(squared, rel=0.08)
