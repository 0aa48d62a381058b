"""The Python API in ten lines: python examples/python_api.py picture.jpg"""

import sys

from hmr_prob_ros import Estimator
from hmr_prob_ros.sources import open_source

with Estimator(samples=100, modes=10) as estimator, open_source(sys.argv[1]) as frames:
    for index, stamp, image in frames:
        for person in estimator(image):  # give estimator(image, camera) your intrinsics for true metres
            x, y, z = person.mean[0]
            print(f"frame {index}, {stamp:.2f} s: person {person.id}, pelvis at ({x:.2f}, {y:.2f}, {z:.2f}) m")
            print("  weights of the modes:", person.weights.round(2))
            print("  right wrist, best mode:", person.joints[0, 21].round(2), "spread", person.spread[21].round(3), "m")
