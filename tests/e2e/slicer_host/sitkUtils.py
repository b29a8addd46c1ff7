"""Stand in for Slicer's bridge from SimpleITK, which there goes through an ITK reader of the scene."""

import numpy as np
import SimpleITK as sitk
import slicer


def PushVolumeToSlicer(sitkimage, targetNode=None, name=None, className="vtkMRMLScalarVolumeNode"):
    if targetNode is not None:
        raise NotImplementedError("a new node only, as MONAI Label's module asks")
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    ijk_to_lps = np.eye(4)
    ijk_to_lps[:3, :3] = np.reshape(sitkimage.GetDirection(), (3, 3)) * sitkimage.GetSpacing()
    ijk_to_lps[:3, 3] = sitkimage.GetOrigin()
    voxels = sitk.GetArrayFromImage(sitkimage)
    return slicer.util.addVolumeFromArray(voxels, lps_to_ras @ ijk_to_lps, name, className)
